"""Search for the student that suits a teacher, before anything is trained: a space, scores, evolution."""
