"""The dashboard and the alerts, tried with a real Prometheus."""
