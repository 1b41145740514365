"""What users import beside the models themselves: `models.lux.derivative_spectra`, `models.translator.importances`."""
