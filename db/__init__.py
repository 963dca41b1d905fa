"""What Plumbline remembers: designs, jobs, results, decisions, workers. Start at :func:`db.engine.open_store`."""
