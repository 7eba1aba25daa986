"""What ships inside the package, and the script that makes it."""
