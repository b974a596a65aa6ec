"""Emissions: from the records of all stages to one ledger.

Needs: results/plan.csv, the record of every stage and item of the plan, and the journal of attempts.
Makes: results/emissions/ledger.csv, results/emissions/attempts.csv.
"""


rule collect_ledger:
    """Collect the records of all stages, and the attempts that failed before them, in one ledger."""
    input:
        plan="results/plan.csv",
        records=all_records(),
    output:
        ledger="results/emissions/ledger.csv",
        attempts="results/emissions/attempts.csv",
    log:
        "results/emissions/logs/collect_ledger.log",
    localrule: True
    params:
        journal="results/emissions/journal.jsonl",  # append-only and always growing, so no input
    script:
        "../scripts/collect_ledger.py"
