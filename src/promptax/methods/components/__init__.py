"""Parts that methods share: replay buffer, class statistics, head alignment, K-means."""
