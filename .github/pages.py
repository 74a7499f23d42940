"""What pages that belong to no experiment say, as `prose.py` of an experiment has it."""

PAGES: dict[str, object] = {}
