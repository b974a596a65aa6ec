"""Carbon: from energy to emissions here, elsewhere and at other times. Only this chapter knows a zone.

Needs: results/emissions/ledger.csv and attempts.csv, the power traces, results/plan.csv, the scores of every run.
Makes: results/emissions/priced.csv, by_*.csv, fidelity.csv, motion.csv (of sequences), adherence.csv (to masks),
whatif.csv, schedule.csv and savings.csv.
"""

COMPARISONS = [
    *("by_size", "by_resolution", "by_stage", "by_sampler", "by_devices"),
    *("by_model", "by_method", "by_zone", "by_season", "by_hour", "fidelity"),
    *(["motion"] if config["images"]["frames"] else []),
    *(["adherence"] if CONTROLLED else []),
]


rule fetch_intensity:
    """Ask the live source for the carbon intensity of the hours that the jobs ran; uses the network."""
    input:
        ledger="results/emissions/ledger.csv",
        attempts="results/emissions/attempts.csv",
    output:
        intensity="results/emissions/intensity.csv",
    log:
        "results/emissions/logs/fetch_intensity.log",
    localrule: True
    params:
        starts="results/emissions/starts.json",
        carbon=config["carbon"],
    script:
        "../scripts/fetch_intensity.py"


rule price_ledger:
    """Price the ledger at the study's zone and at the hours that the jobs ran."""
    input:
        unpack(intensity_of_study),
        ledger="results/emissions/ledger.csv",
        attempts="results/emissions/attempts.csv",
        traces=all_records(".power.parquet"),
    output:
        priced="results/emissions/priced.csv",
    log:
        "results/emissions/logs/price_ledger.log",
    localrule: True
    params:
        carbon=config["carbon"],
    script:
        "../scripts/price_ledger.py"


rule compare_emissions:
    """Compare sizes, resolutions, stages, samplers, devices, zones and seasons, and energy with fidelity."""
    input:
        priced="results/emissions/priced.csv",
        plan="results/plan.csv",
        scores=artefacts("runs", "fidelity.json"),
        motion=artefacts("runs", "motion.json") if config["images"]["frames"] else [],
        adherence=artefacts("runs", "adherence.json") if CONTROLLED else [],
    output:
        **{name: f"results/emissions/{name}.csv" for name in COMPARISONS},
    log:
        "results/emissions/logs/compare_emissions.log",
    localrule: True
    params:
        carbon=config["carbon"],
    script:
        "../scripts/compare_emissions.py"


rule whatif:
    """Price the study's total in every zone and month."""
    input:
        ledger="results/emissions/ledger.csv",
        traces=all_records(".power.parquet"),
    output:
        whatif="results/emissions/whatif.csv",
    log:
        "results/emissions/logs/whatif.log",
    localrule: True
    params:
        carbon=config["carbon"],
    script:
        "../scripts/whatif.py"


rule propose_schedule:
    """Propose when to run the same study next: at once, at the best start, and every stage by itself."""
    input:
        ledger="results/emissions/ledger.csv",
        plan="results/plan.csv",
    output:
        schedule="results/emissions/schedule.csv",
    log:
        "results/emissions/logs/propose_schedule.log",
    localrule: True
    params:
        carbon=config["carbon"],
        slack_h=config["schedule"]["slack_h"],
    script:
        "../scripts/propose_schedule.py"


rule measure_savings:
    """Hold what the study emitted, having waited and paused as `schedule` asks, against the same work at once."""
    input:
        unpack(intensity_of_study),
        ledger="results/emissions/ledger.csv",
        attempts="results/emissions/attempts.csv",
        traces=all_records(".power.parquet"),
    output:
        savings="results/emissions/savings.csv",
    log:
        "results/emissions/logs/measure_savings.log",
    localrule: True
    params:
        starts="results/emissions/starts.json",
        pauses="results/emissions/pauses.jsonl",
        carbon=config["carbon"],
    script:
        "../scripts/measure_savings.py"
