"""`her2 view`: the tiles that are most like another, by their features."""
