"""What `make bench` runs: each part prints its number beside the reference it is compared with."""
