"""YAML in, four Airflow DAGs per project out. Nothing heavy is imported while Airflow parses."""
