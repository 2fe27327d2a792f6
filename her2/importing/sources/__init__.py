"""The sources of cohorts that `her2 import` knows, one file each, which ends with `SOURCE`."""
