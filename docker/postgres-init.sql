-- Runs once, when the database is made. MLflow's own is POSTGRES_DB.
CREATE DATABASE studies;
