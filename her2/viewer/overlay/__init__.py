"""`her2 view`: how layers are made, and what they are made of; the layers are in `layers/`."""
