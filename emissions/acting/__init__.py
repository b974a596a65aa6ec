"""Runs that follow the grid: wait for a start, pause training, keep a budget, and say what it saved.

settings    the config's `schedule` and `budget`
starts      the planned start of a study, kept in results/emissions/starts.json, and the wait for it
signal      the study's carbon intensity as a running job needs it: now, and over the hours that have passed
budget      what a study has used so far, running jobs included, and whether that is too much
pauses      the pauses of trainings, kept in results/emissions/pauses.jsonl
controller  the thread in a training's job that tells it to pause, to go on or to stop
job         all of these in one metered job
savings     what waiting and pausing saved, against the same work at once
"""
