"""What is looked at while a run trains: metrics, probe, snapshots, doctor, init guard, progress."""
