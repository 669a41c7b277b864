"""Subject-aware captions (EAM section 3.3): what to ask a vision-language model, whom to ask, and what it answered."""
