"""What MLflow shows. The only room that speaks to it."""
