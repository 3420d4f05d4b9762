"""Scoring of transcripts and the report of a run: text normalisation, metrics, the HTML page."""
