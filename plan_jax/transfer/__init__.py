"""Transfer: what is learned on a frozen or fine-tuned image encoder of a run, and how it scores.

`settings` says what a task can be told, `by_name` what each task does, `__main__` runs one from the
command line and `attached` those that a config names.
"""
