"""Other protocols, translated to native requests: Open Inference v2, and Hugging Face's."""
