"""What people look at: figures of merit, tables, and later the model report."""
