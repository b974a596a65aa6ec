"""When and where to run measured work.

One job:
    slots       intensities between two times, with exact integrals
    start       the best start of a job, and of very many jobs in many zones
    pauses      the best slots of a job that may be paused at checkpoints; the limit that acting needs
    slot_program the dynamic program behind it
    site        the best of several sites, with the energy of moving the data
    backtest    replays history with the forecasts of the time
The whole study:
    tasks       tasks of a measured study, and what each waits for
    problem     tasks, sites and a deadline in numbers
    program     the mixed-integer program; listed: plans without a solver
    dag         the plan of the whole study; policies: beside its alternatives; propose: a study's schedule.csv
    command     `footprint schedule`
"""
