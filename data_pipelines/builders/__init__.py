"""Builders of TensorFlow Datasets: `tfds build` writes what `data_pipelines.sources.tfds` reads."""
