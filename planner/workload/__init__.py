"""The training to plan: model, batch, loss, sizes, optimizer."""
