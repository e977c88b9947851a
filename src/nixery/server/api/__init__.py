"""What the pages show, for programs: JSON below ``/api/v1``."""
