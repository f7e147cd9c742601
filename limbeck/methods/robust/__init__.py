"""Robust training: methods that read adversarial examples, which the transform ``pgd`` makes."""
