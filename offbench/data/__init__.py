"""From a recorded dataset to batches: flat storage, sampling, views, transforms, compositions."""
