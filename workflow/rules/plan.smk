"""The plan, written down. Needs the config alone; makes results/plan.csv, which the accounting reads."""


rule write_plan:
    """Write the plan down: one row a run, with all its settings."""
    output:
        plan="results/plan.csv",
    log:
        "results/logs/write_plan.log",
    localrule: True
    params:
        columns=list(COLUMNS),
        rows=plan.rows(),
    script:
        "../scripts/write_plan.py"
