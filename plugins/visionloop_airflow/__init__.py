"""visionloop in Airflow: the Ray job operator and trigger, stage tasks, and the approval of a release."""
