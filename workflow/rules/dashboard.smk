"""Dashboard: the study on one page, and its summary in plain text.

Needs: results/emissions/*.csv, results/plan.csv, the pictures of cohorts and runs.
Makes: results/dashboard/index.html, results/summary.txt.
"""


rule build_dashboard:
    """Draw the tables and pictures on one self-contained page."""
    input:
        ledger="results/emissions/ledger.csv",
        attempts="results/emissions/attempts.csv",
        priced="results/emissions/priced.csv",
        comparisons=expand("results/emissions/{name}.csv", name=COMPARISONS),
        schedule="results/emissions/schedule.csv",
        savings="results/emissions/savings.csv",
        plan="results/plan.csv",
        cohorts=artefacts("cohorts", "cohort.json"),
        pictures=artefacts("runs", "samples.png"),
        real_pictures=artefacts("cohorts", "real.png"),
        controlled_pictures=artefacts("runs", "controlled.png") if CONTROLLED else [],
    output:
        page=report(
            "results/dashboard/index.html",
            caption="../report/dashboard.rst",
            category="Dashboard",
            labels={"what": "the study on one page"},
        ),
    log:
        "results/dashboard/logs/build_dashboard.log",
    localrule: True
    params:
        title=config["study"]["title"],
        source=source_of(
            "emissions/dashboard.py",
            "emissions/sections.py",
            "emissions/places_section.py",
            "emissions/acting/savings.py",
            "emissions/extremes.py",
            "emissions/methods_section.py",
            "emissions/adherence_section.py",
            "emissions/motion_section.py",
            "emissions/charts.py",
            "emissions/waste.py",
            "emissions/breakdown.py",
            "emissions/findings.py",
            "emissions/figures",
            "emissions/templates/dashboard.html",
            "emissions/templates/dashboard.css",
            "emissions/templates/dashboard.js",
        ),
    script:
        "../scripts/build_dashboard.py"


rule print_summary:
    """Sum the study up on one screen of plain text."""
    input:
        priced="results/emissions/priced.csv",
        attempts="results/emissions/attempts.csv",
        comparisons=expand("results/emissions/{name}.csv", name=COMPARISONS),
        savings="results/emissions/savings.csv",
        plan="results/plan.csv",
        cohorts=artefacts("cohorts", "cohort.json"),
        dashboard="results/dashboard/index.html",
    output:
        summary=report(
            "results/summary.txt",
            caption="../report/summary.rst",
            category="Dashboard",
            labels={"what": "summary"},
        ),
    log:
        "results/emissions/logs/print_summary.log",
    localrule: True
    script:
        "../scripts/print_summary.py"
