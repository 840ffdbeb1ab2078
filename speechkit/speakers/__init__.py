"""What is done with speaker embeddings: trials, scores, calibration, enrolment, diarization."""
