"""Multi-Rollout On-Policy Distillation (arXiv 2605.12652): which peer context gives a teacher signal that agrees with the verifier?"""
