"""What methods work from beside the model, one file each: pictures, masks, sums over captions."""
