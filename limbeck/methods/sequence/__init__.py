"""Methods for language models: labels are shifted by the task, the mask says which tokens count."""
