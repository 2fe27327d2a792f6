"""From a download or a hospital's export to a manifest: `her2 import`, one file per source."""
