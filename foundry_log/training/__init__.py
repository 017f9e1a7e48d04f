"""The main job: a small language model, trained with everything logged."""
