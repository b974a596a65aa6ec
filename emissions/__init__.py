"""Everything about energy and carbon: metering, ledger, prices, comparisons, dashboard. Knows nothing of models."""
