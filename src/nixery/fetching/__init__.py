"""Package sources as they are: directories, repositories, archives."""
