"""What the report of a study is made of; the door is ``analysis.report``."""
