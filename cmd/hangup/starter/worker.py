"""A worker: every task is a function from the input to the result."""

import subprocess

import hangup


@hangup.task
def fit(input):
    """Quick: the size of an image of width x height made to fit a square."""
    width, height, square = input["width"], input["height"], input.get("square", 200)
    scale = min(1, square / max(width, height))
    return {"width": round(width * scale), "height": round(height * scale)}


@hangup.task
def batch(input):
    """Slow: a second and a process of its own for each image."""
    images = input.get("images", 60)
    for done in range(images):
        hangup.progress(done=done, total=images)
        subprocess.run(["sleep", "1"], check=True)
    return {"images": images}


hangup.serve()
