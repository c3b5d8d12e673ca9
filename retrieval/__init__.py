"""Everything that a query needs: types, errors, media, encoders, the store, search and evaluation."""
