"""Files and URLs: atomic writing, digests, limits, errors of disks and stores in words."""
