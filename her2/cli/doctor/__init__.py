"""`her2 doctor`: one screen before a night, by checks that stand in one file each."""
