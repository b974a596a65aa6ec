"""Everything about energy and carbon; knows nothing of models, and runs without torch.

Metering, a job's side:
    stage       `with stage(snakemake):`; signals, joblog: what becomes of a job's signals and words
    track       `footprint track -- COMMAND`
    doctor      `footprint doctor`
    client      the connection to the node's recorder; meeting: where they find each other; job: what it says of itself
    lease       GPUs of a job's own
Metering, the recorder's side:
    recorder    the process: who attaches, what becomes of them; beside: CodeCarbon in a process of its own
    node        jobs that share the node, and what each has used; attribution: how joules are divided;
                neighbours: other recorders of the node
    sensors     all meters, read together; meters/: one small file each; processes: CPU time of a job
    uncertainty how intervals combine
What it leaves:
    attempt_file the file that grows with an attempt; retries: attempts that belong together
    records     record and journal; ledger: records to a table
Accounting:
    grid/, pricing, places      carbon intensity (grid/live: services on the network), and prices here and elsewhere
    work, whatif, extremes      anybody's measured work in all places, months and hours; how far apart those are
    schedule/                   when and where to run it next: one job, the whole study, history replayed
    acting/                     runs that follow the grid: start, pauses, budget, and what these saved
    phases, allocation, compare shared stages to the runs that needed them, and the comparisons
    waste, breakdown            what was lost, and where an interval comes from
Telling:
    summary, dashboard, sections, places_section, methods_section, charts, findings, gallery, figures/, templates/
"""
