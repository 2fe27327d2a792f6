"""Feature files of other programs: read, matched with slides, checked, taken in and written."""
