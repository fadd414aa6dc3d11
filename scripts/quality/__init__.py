"""What a variant costs in quality: measures, intervals and the rule that judges them."""
