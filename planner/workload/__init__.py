"""What is to be trained: model, batch, loss, sizes, optimizer."""
