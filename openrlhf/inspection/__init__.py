"""A look at what is trained, before any of it is: statistics, rows with their targets, in a terminal or on a page.

statistics.py (numbers and facts), samples.py (a sample or a pair as pieces.py) → show.py (page.html is its frame)
"""
