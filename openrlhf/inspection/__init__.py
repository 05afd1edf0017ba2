"""A look at what is trained, before any of it is: statistics, rows with their targets, in a terminal or on a page.

statistics.py (numbers and facts) → show.py (page.html is its frame)
"""
