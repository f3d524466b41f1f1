"""What the merged timeline means: what each vCPU was doing, and why."""
