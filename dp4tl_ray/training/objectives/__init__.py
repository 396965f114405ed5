"""What a training minimises: with labels, or on two views of each image."""
